"""What kind of image a file holds, as far as its name or its tags say so.

The names are those that people read: "CT", "PET", "SPECT", "MRI" and the contrasts of MRI, such as
"T1w". A wrong name is worse than none: where nothing says it, or a name says two, it is "".
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
# Of the tag Modality; other codes stand for themselves.
_BY_CODE = {"PT": "PET", "MR": "MRI"}


def of_name(path: Any) -> str:
  """Returns what a file's name says, or else the whole name of its folder; "" for nothing.

  A file's name is cut at dots, underscores and blanks; BIDS' entities, such as `space-T1w`, are
  passed over. `sub-01_T1w.nii.gz` is "T1w", `pet/case 7.nii.gz` is "PET", and `pet_to_t1.nii.gz`
  says two.
  """
  words = re.split(r"[._\s]+", path.name.lower())
  found = {_BY_WORD[word] for word in words if word in _BY_WORD}
  if not found:
    return _BY_WORD.get(path.parent.name.lower(), "")
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
