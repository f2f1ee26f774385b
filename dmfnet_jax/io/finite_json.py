"""JSON as the standard has it, in which what is not finite is null."""

import json
import math
from typing import Any


def dumps(node: Any, **options: Any) -> str:
  """Returns the JSON of dicts, lists, tuples and scalars; NaN and infinities become null.

  Args:
    node: what to encode.
    options: of `json.dumps`.
  """
  return json.dumps(_finite(node), ensure_ascii=False, allow_nan=False, **options)


def _finite(node: Any) -> Any:
  if isinstance(node, dict):
    return {key: _finite(value) for key, value in node.items()}
  if isinstance(node, (list, tuple)):
    return [_finite(value) for value in node]
  return None if isinstance(node, float) and not math.isfinite(node) else node
