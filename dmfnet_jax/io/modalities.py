"""What kind of image a file holds, as far as its name or its tags say so.

The names are those that people read: "CT", "PET", "SPECT", "MRI" and the contrasts of MRI, such as
"T1w"; of photographs "infrared" and "visible". A wrong name is worse than none: where nothing says
it, or a name says two, it is "".
"""

import re
from typing import Any

FUNCTIONAL = ("PET", "SPECT", "NM")
"""Their values are activities: they begin at 0, and the brightest spot is what one looks for."""

# Suffixes of BIDS, and what other data sets call the same, in small letters; but not what may as
# well be the patient ("pt") or a disease ("pd").
_BY_WORD = {
  **dict.fromkeys(("ct", "cta", "cbct"), "CT"),
  **dict.fromkeys(("pet", "fdg", "suv"), "PET"),
  "spect": "SPECT",
  **dict.fromkeys(("mri", "mr"), "MRI"),
  **dict.fromkeys(("t1", "t1w"), "T1w"),
  **dict.fromkeys(("t1c", "t1ce", "t1gd"), "T1ce"),
  **dict.fromkeys(("t2", "t2w"), "T2w"),
  "pdw": "PDw",
  **dict.fromkeys(("t2star", "t2starw"), "T2*w"),
  "flair": "FLAIR",
  "swi": "SWI",
  "dwi": "DWI",
  "adc": "ADC",
  "mra": "MRA",
}
# Not of volumes, where IR is a sequence of MRI.
_PHOTOGRAPHS = {
  **dict.fromkeys(("ir", "infrared", "thermal", "fir", "lwir", "nir"), "infrared"),
  **dict.fromkeys(("vi", "vis", "visible"), "visible"),
}
# Of the tag Modality; other codes stand for themselves.
_BY_CODE = {"PT": "PET", "MR": "MRI"}
# What these say is that they are something else.
_OTHER = frozenset({"OT", "SC"})
_CONTRASTS = frozenset({"T1w", "T1ce", "T2w", "PDw", "T2*w", "FLAIR", "SWI", "DWI", "ADC", "MRA"})


def of_name(path: Any, *, photographs: bool = False) -> str:
  """Returns what a file's name says, or else the whole name of its folder; "" for nothing.

  A file's name is cut at dots, underscores and blanks; BIDS' entities, such as `space-T1w`, are
  passed over. `sub-01_T1w.nii.gz` is "T1w", `pet/case 7.nii.gz` is "PET", and `pet_to_t1.nii.gz`
  says two. Only where `photographs` may be meant, `ir/1.png` is "infrared".
  """
  by_word = _BY_WORD | (_PHOTOGRAPHS if photographs else {})
  words = re.split(r"[._\s]+", path.name.lower())
  found = {by_word[word] for word in words if word in by_word}
  if not found:
    return by_word.get(path.parent.name.lower(), "")
  return found.pop() if len(found) == 1 else ""


def of_code(code: str, image_type: str = "") -> str:
  """Returns what DICOM's Modality says, "" for an empty one.

  Args:
    code: of the tag.
    image_type: of the tag ImageType, its values parted by backslashes. It tells the tomography of
      nuclear medicine, SPECT, from its planar images (PS3.3, C.8.4.9.1.1).
  """
  if code == "NM" and "TOMO" in image_type.upper():
    return "SPECT"
  return _BY_CODE.get(code, code)


def family(modality: str) -> str:
  """The modality without its contrast: "MRI" for "T1w"; "" where it is not known."""
  if modality in _CONTRASTS:
    return "MRI"
  return "" if modality in _OTHER else modality
