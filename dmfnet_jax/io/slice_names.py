"""What the name of a slice says: whose it is, and which one."""

import re

_NAME = re.compile(r"(?P<subject>.+?)[-_ .]*(?P<slice>\d{1,3})")


def subject_and_slice(stem: str) -> tuple[str, str]:
  """The subject, and the slice's number, of a picture's stem.

  The last three digits at most are the slice's, what stands before them is the subject's: "01" and
  "030" of `01030`, "BraTS18_CBICA_AAB_1" and "045" of `BraTS18_CBICA_AAB_1_045`. A stem without
  digits at its end is a subject's only slice, "".
  """
  found = _NAME.fullmatch(stem)
  return (found["subject"], found["slice"]) if found else (stem, "")
