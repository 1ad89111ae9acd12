"""Read a diagnosis: melanoma, another lesion, or left out. The table is that of docs/data.md."""

from __future__ import annotations

import re
from collections.abc import Sequence

from melanoma.data.tables import NO_VALUE

MELANOMA, OTHER, LEFT_OUT, UNCLEAR = "melanoma", "other", "left out", "unclear"  # how a diagnosis is read

# No diagnosis: such an image is left out.
UNKNOWN = (*NO_VALUE, "undetermined")
# Short forms of HAM10000, ISIC 2018 and 2019, and PAD-UFES-20.
SHORT = {
    "mel": MELANOMA,
    **dict.fromkeys(
        ("nv", "nev", "bcc", "ak", "ack", "akiec", "bkl", "sk", "sek", "df", "vasc", "scc", "bod", "aimp"), OTHER
    ),
}
# Words that may stand before "melanoma"; after it any may, but those of DOUBT.
BEFORE = re.compile(
    r"((acral|amelanotic|cutaneous|desmoplastic|early|in situ|invasive|lentiginous|malignant|melanocytic|metastatic|"
    r"mucosal|naevoid|nevoid|nodular|primary|proliferations?|spitzoid|spreading|subungual|superficial|thin|uveal) )*"
)
DOUBT = re.compile(
    r"\b(excluded?|history|like|mimic|no|non|not|or|possible|probable|ruled?|suspect(ed)?|suspicion|suspicious|versus|vs|"
    r"without)\b|\?"
)
DENIED = re.compile(r"\b(no|non|not)\b|\?|melanoma|lentigo maligna|\bmel\b")  # no plain name of another lesion
# A diagnosis with one of these parts, and without melanoma, is of another lesion.
OTHER_PARTS = re.compile(
    r"acanthoma|acrochordon|adenoma|angioma|\bbenign|\bbowen|carcinoma|\bcysts?\b|dermatitis|dermatos[ei]s|eczema|fibroma|"
    r"granuloma|ha?ematoma|ha?emorrhage|hyperplasia|infection|inflammat|keratos[ei]s|keratoma|lentig(o|ines)\b|"
    r"leuka?emia|lichen|lipoma|lymphoma|macule|melanosis|miscellaneous|\bmoles?\b|molluscum|na?ev(us|i)\b|neoplasm|"
    r"\bother\b|papilloma|papule|pigmentation|poroma|proliferation|prurigo|psoriasis|sarcoma|\bscar|\bspitz|"
    r"epithelioma|tumou?r|ulcer|vascular|verruca|wart"
)


def read_diagnosis(levels: Sequence[str]) -> str:
    """Return how a diagnosis is read: one of the four words above.

    MELANOMA is melanoma in situ, invasive, metastatic or not otherwise specified, and lentigo maligna; OTHER is any
    other named lesion, LEFT_OUT an indeterminate or unknown diagnosis, UNCLEAR what the table does not know.

    levels : of one diagnosis, from the general to the particular, as the ISIC Archive's diagnosis_1 to diagnosis_5
    """
    known = [words for level in levels if (words := _words(level)) not in UNKNOWN]
    found = [_read_level(words) for words in known]
    if any(words.startswith("indeterminate") for words in known):
        return LEFT_OUT
    for label in (MELANOMA, OTHER):
        if label in found:
            return label
    # among several levels a bare "malignant" is an indeterminate diagnosis
    if known and (len(levels) == 1 or set(known) != {"malignant"}):
        return UNCLEAR
    return LEFT_OUT


def _words(text: str) -> str:
    """Return text in lower case, without punctuation, its words one space apart; a question mark is kept."""
    plain = text.strip().casefold()
    return plain if plain in UNKNOWN else " ".join(re.sub(r"[^a-z0-9?]+", " ", plain).split())


def _read_level(words: str) -> str | None:
    """Return MELANOMA or OTHER for one level; None if it tells nothing."""
    if words in SHORT:
        return SHORT[words]
    rest = BEFORE.sub("", words, count=1)
    if re.match(r"(melanomas?|lentigo maligna)\b", rest):
        return None if DOUBT.search(rest) else MELANOMA
    return OTHER if OTHER_PARTS.search(words) and not DENIED.search(words) else None
