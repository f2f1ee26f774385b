"""The seven-point checklist of skin lesions, as the Derm7pt data set has it in its table.

Kawahara et al., IEEE JBHI 2018 (doi 10.1109/JBHI.2018.2824327). Rare classes are grouped as its
authors group them.
"""

from collections.abc import Mapping

import numpy as np

from dmfnet_jax.errors import UserError

_NEVI = ("blue", "clark", "combined", "congenital", "dermal", "recurrent", "reed or spitz")
_MELANOMAS = (
  "melanoma",
  "melanoma (in situ)",
  "melanoma (less than 0.76 mm)",
  "melanoma (0.76 to 1.5 mm)",
  "melanoma (more than 1.5 mm)",
  "melanoma metastasis",
)
_OTHERS = ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion")
_GRADED = {"absent": ("absent",), "regular": ("regular",), "irregular": ("irregular",)}

CRITERIA: Mapping[str, Mapping[str, tuple[str, ...]]] = {
  "diagnosis": {
    "basal cell carcinoma": ("basal cell carcinoma",),
    "nevus": ("nevus", *(f"{kind} nevus" for kind in _NEVI)),
    "melanoma": _MELANOMAS,
    "miscellaneous": _OTHERS,
    "seborrheic keratosis": ("seborrheic keratosis",),
  },
  "pigment_network": {name: (name,) for name in ("absent", "typical", "atypical")},
  "blue_whitish_veil": {name: (name,) for name in ("absent", "present")},
  "vascular_structures": {
    "absent": ("absent",),
    "regular": ("regular", "arborizing", "comma", "hairpin", "within regression", "wreath"),
    "irregular": ("irregular", "dotted", "linear irregular"),
  },
  "pigmentation": {
    "absent": ("absent",),
    "regular": ("regular", "diffuse regular", "localized regular"),
    "irregular": ("irregular", "diffuse irregular", "localized irregular"),
  },
  "streaks": _GRADED,
  "dots_and_globules": _GRADED,
  "regression_structures": {
    "absent": ("absent",),
    "present": ("present", "blue areas", "white areas", "combinations"),
  },
}
"""What is judged: a column's name to its classes, and to what the table says of each."""

FACTS: tuple[tuple[str, tuple[str, ...]], ...] = (
  ("elevation", ("flat", "nodular", "palpable")),
  ("sex", ("female", "male")),
  (
    "location",
    (
      *("abdomen", "acral", "back", "buttocks", "chest", "genital areas", "head neck"),
      *("lower limbs", "upper limbs"),
    ),
  ),
  ("level_of_diagnostic_difficulty", ("high", "low", "medium")),
  ("management", ("clinical follow up", "excision", "no further examination")),
)
"""What is known besides the pictures: the columns, and what each may say."""

LEAKING = ("level_of_diagnostic_difficulty", "management")
"""Columns that the physician filled in after having judged the lesion: they tell the diagnosis."""


def classes_of(row: Mapping[str, str]) -> np.ndarray:
  """The class numbers of a row of the table, int8 [8], in the order of `CRITERIA`.

  Raises:
    UserError: the row lacks a column, or says what is no class.
  """
  found = []
  for name, classes in CRITERIA.items():
    said = _cell(row, name)
    numbers = [i for i, group in enumerate(classes.values()) if said in group]
    if not numbers:
      raise UserError(f"column {name}: {said!r} is none of {', '.join(sum(classes.values(), ()))}")
    found.append(numbers[0])
  return np.array(found, np.int8)


def one_hot(
  row: Mapping[str, str],
  columns: tuple[tuple[str, tuple[str, ...]], ...],
  left_out: tuple[str, ...] = (),
) -> np.ndarray:
  """What a row says, as uint8 zeros and ones in the order of the columns.

  Args:
    row: cells by column. An empty cell is unknown: zeros.
    columns: see `Field.columns`.
    left_out: columns that may be missing.

  Raises:
    UserError: the row lacks a column, or says what is not known.
  """
  found = []
  for name, known in columns:
    said = "" if name in left_out and name not in row else _cell(row, name)
    if said and said not in known:
      raise UserError(f"column {name}: {said!r} is none of {', '.join(known)}")
    found += [said == value for value in known]
  return np.array(found, np.uint8)


def _cell(row: Mapping[str, str], name: str) -> str:
  if row.get(name) is None:
    raise UserError(f"there is no column {name}: it has {', '.join(filter(None, row))}")
  return row[name].strip().lower()
