"""diagnoses.py: the table of docs/data.md, by example."""

import pytest

from melanoma.data.diagnoses import read_diagnosis

MELANOMA = """melanoma|Melanoma|MEL|mel|melanoma in situ|Melanoma, NOS|Melanoma Invasive|lentigo_maligna
Lentigo maligna|Lentigo maligna melanoma|Melanoma metastasis|metastatic melanoma
Superficial Spreading Melanoma|malignant melanoma|Malignant melanocytic proliferations (Melanoma)
melanoma (less than 0.76 mm)|acral lentiginous melanoma|Nodular melanoma
Melanoma in situ, Superficial spreading|Melanoma invasive, Nodular|invasive melanoma, NOS
Amelanotic melanoma"""
OTHER = """nevus|NV|NEV|naevus|melanocytic nevus|Nevus, Atypical, Dysplastic, or Clark|reed or spitz nevus
blue nevus|lentigo NOS|solar lentigo|lentigo simplex|seborrheic keratosis|actinic keratosis
lichenoid keratosis|basal cell carcinoma|BCC|bkl|df|vasc|Squamous cell carcinoma in situ|SCC|akiec|AK
dermatofibroma|hemangioma|angioma|vascular lesion|cafe-au-lait macule|benign
atypical melanocytic proliferation|AIMP|angiofibroma or fibrous papule|scar|verruca|clear cell acanthoma
other|melanosis"""
LEFT_OUT = ["", "unknown", "UNK", "N/A", "nan", "indeterminate", "Indeterminate melanocytic proliferations", "?"]
UNKNOWN = """no melanoma|melanoma?|non-melanoma skin cancer|melanoma-like nevus|suspected melanoma|nevus or melanoma
melanoma vs nevus|pseudomelanoma|seborrheic keratosis, melanoma excluded|malignant|xyz|no nevus
history of melanoma|nv or mel"""


def listed(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


@pytest.mark.parametrize("text", listed(MELANOMA))
def test_melanoma(text):
    assert read_diagnosis([text]) == read_diagnosis([text.upper()]) == read_diagnosis([f" {text} "]) == "melanoma"


@pytest.mark.parametrize("text", listed(OTHER))
def test_other_lesions(text):
    assert read_diagnosis([text]) == read_diagnosis([text.upper()]) == "other"


@pytest.mark.parametrize("text", LEFT_OUT)
def test_an_unknown_or_indeterminate_diagnosis_is_left_out(text):
    assert read_diagnosis([text]) == "left out"


@pytest.mark.parametrize("text", listed(UNKNOWN))
def test_a_diagnosis_that_the_table_does_not_know_is_unclear(text):
    assert read_diagnosis([text]) == "unclear"


@pytest.mark.parametrize(
    ("levels", "label"),
    [
        (["Malignant", "", "Melanoma, NOS"], "melanoma"),
        (["Malignant", "Malignant epidermal proliferations", "Basal cell carcinoma"], "other"),
        (["Benign", "xyz"], "other"),
        (["Benign", "Flat melanotic pigmentations - not melanocytic nevus", "Lentigo NOS"], "other"),
        (["Indeterminate", "Indeterminate melanocytic proliferations", "Atypical melanocytic neoplasm"], "left out"),
        (["Malignant", ""], "left out"),
        (["", ""], "left out"),
    ],
)
def test_the_levels_of_a_diagnosis_are_read_together(levels, label):
    assert read_diagnosis(levels) == label
