"""Writing fused slices as a DICOM Secondary Capture series that lies where its source lies.

One file a slice (Secondary Capture Image Storage, PS3.3 A.8.1), 8 bits, grey or RGB, uncompressed.
Patient, study and frame of reference are copied from the source series, so that a viewer files the
result beside it and can overlay both; series and images get new UIDs.
"""

import contextlib
import copy
import datetime
import io
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid
from pydicom.valuerep import DSfloat

import dmfnet_jax
from dmfnet_jax.errors import UserError
from dmfnet_jax.io import paths
from dmfnet_jax.io.dicom import headers
from dmfnet_jax.io.dicom.headers import Tags
from dmfnet_jax.io.dicom.read import Frame
from dmfnet_jax.io.grids import Volume

_MAKER = "dmfnet_jax"

# The patient and study modules (C.7.1.1, C.7.2.1, C.7.2.2), with what says how names are encoded
# and whether they were removed. The study's times stay: a study is identified by them.
_COPIED = """
  SpecificCharacterSet PatientName PatientID IssuerOfPatientID TypeOfPatientID PatientBirthDate
  PatientSex OtherPatientIDsSequence PatientAge PatientSize PatientWeight PatientIdentityRemoved
  DeidentificationMethod DeidentificationMethodCodeSequence LongitudinalTemporalInformationModified
  StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber
  ReferringPhysicianName FrameOfReferenceUID PositionReferenceIndicator BodyPartExamined Laterality
  PatientPosition PixelSpacingCalibrationType LossyImageCompression LossyImageCompressionRatio
  LossyImageCompressionMethod
""".split()
# Type 2, or 2C by rules that a program cannot decide: to be there, if empty.
_AT_LEAST_EMPTY = """
  PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
  ReferringPhysicianName Laterality PatientOrientation
""".split()


def write_secondary_capture(
  folder: paths.PathLike, pictures: np.ndarray, volume: Volume
) -> list[Any]:
  """Writes pictures as a new Secondary Capture series in the study of their source.

  All files are complete before the first of them takes its place, so that a folder never holds a
  part of a slice.

  Args:
    folder: made where it is missing. Older files `slice_0001.dcm`, ... are replaced.
    pictures: uint8 [I, J, K] (MONOCHROME2) or [I, J, K, 3] (RGB), on the grid of `volume`; or with
      slices that have several times as many rows and columns.
    volume: a series as `read_dicom` returns it, whose patient and study it is, too.

  Returns:
    The paths, in the order of the slices.

  Raises:
    UserError: the folder cannot be written, or holds other DICOM files, which would mix with these.
    ValueError: the pictures are not such an array.
  """
  grid = volume.shape
  factor = pictures.shape[0] // grid[0]
  wanted = factor * grid[0], factor * grid[1], grid[2]
  if pictures.dtype != np.uint8 or pictures.shape not in (wanted, (*wanted, 3)):
    raise ValueError(
      f"uint8 {wanted} or {(*wanted, 3)} expected, got {pictures.dtype} {pictures.shape}"
    )
  place = paths.make_folder(folder)
  targets = [place / f"slice_{i + 1:04d}.dcm" for i in range(grid[2])]
  _check_folder(place, {path.name for path in targets})

  series_uid, now = generate_uid(), datetime.datetime.now()

  def encode(i: int) -> bytes:
    dataset = _image(pictures[:, :, i].swapaxes(0, 1), volume, factor, i, series_uid, now)
    encoded = io.BytesIO()
    dataset.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()

  try:
    # Copied values are written as they are: a source may break its standard's length limits.
    with headers.quiet(), pydicom.config.disable_value_validation():
      paths.write_together((path, encode(i)) for i, path in enumerate(targets))
  except OSError as error:
    raise UserError(f"{folder}: cannot write: {paths.reason(error)}") from error
  return targets


def _check_folder(folder: Any, ours: set[str]) -> None:
  files = [file for file in paths.list_files(folder) if headers.looks_like_dicom(file)]
  # A source of the same name as one of ours must not be replaced.
  others = [file.name for file in files if file.name not in ours or not _is_our_result(file)]
  if others:
    raise UserError(
      f"{folder}: holds other DICOM files ({others[0]}{' ...' if len(others) > 1 else ''}),"
      " with which the new series would be mixed: name an empty folder"
    )


def _is_our_result(file: Any) -> bool:
  try:
    with headers.quiet():
      return Tags(headers.read_file(file)).text("SecondaryCaptureDeviceManufacturer") == _MAKER
  except headers.BadFileError:
    return False


def _image(
  picture: np.ndarray,
  volume: Volume,
  factor: int,
  i: int,
  series_uid: str,
  now: datetime.datetime,
) -> pydicom.Dataset:
  """Slice i: uint8 [rows, columns] or [rows, columns, 3], so many times those of the volume."""
  frame: Frame = volume.source[i]
  dataset = pydicom.Dataset()
  for keyword in _COPIED:
    # pydicom parses on access; what it cannot parse is not copied.
    with contextlib.suppress(Exception):
      dataset[keyword] = copy.deepcopy(frame.header[keyword])
  for keyword in _AT_LEAST_EMPTY:
    dataset.setdefault(keyword, "")
  if not Tags(dataset).uid("StudyInstanceUID"):
    raise UserError(f"{frame.path}: lacks StudyInstanceUID: there is no study to write into")

  date, time = f"{now:%Y%m%d}", f"{now:%H%M%S.%f}"
  dataset.SOPClassUID = SecondaryCaptureImageStorage
  dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = date
  dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = time
  dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
  dataset.SeriesInstanceUID = series_uid
  dataset.SeriesDescription = f"{_MAKER} fusion"
  dataset.DerivationDescription = f"Fused from registered series by {_MAKER}"
  # Behind the scanner's own series in a list, and beside its source.
  dataset.SeriesNumber = int(frame.tags.number("SeriesNumber") or 0) % 1_000_000 + 1000
  dataset.InstanceNumber = i + 1
  dataset.Modality = "OT"
  dataset.ConversionType = "WSD"  # workstation
  dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = _MAKER
  dataset.SecondaryCaptureDeviceSoftwareVersions = dmfnet_jax.__version__
  dataset.ImageType = ["DERIVED", "SECONDARY"]
  burned_in = frame.tags.text("BurnedInAnnotation").upper() == "YES"
  dataset.BurnedInAnnotation = "YES" if burned_in else "NO"
  if frame.tags.uid("SOPInstanceUID"):
    dataset.SourceImageSequence = [_reference(frame)]
  _set_geometry(dataset, frame, volume, factor)
  # The pixels with their size, depth and transfer syntax (explicit, little-endian), and a new UID.
  kind = "RGB" if picture.ndim == 3 else "MONOCHROME2"
  dataset.set_pixel_data(np.ascontiguousarray(picture), kind, 8)
  if kind != "RGB":
    # 0 is black and 255 white: some viewers would stretch the contrast otherwise.
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
  return dataset


def _reference(frame: Frame) -> pydicom.Dataset:
  """Names the image from which a slice was made."""
  reference = pydicom.Dataset()
  reference.ReferencedSOPClassUID = frame.tags.uid("SOPClassUID")
  reference.ReferencedSOPInstanceUID = frame.tags.uid("SOPInstanceUID")
  if not frame.single:
    reference.ReferencedFrameNumber = frame.index + 1
  purpose = pydicom.Dataset()
  purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
  purpose.CodeMeaning = "Source image for image processing operation"
  reference.PurposeOfReferenceCodeSequence = [purpose]
  return reference


def _set_geometry(dataset: pydicom.Dataset, frame: Frame, volume: Volume, factor: int) -> None:
  """Writes what is known of position, orientation and distances."""
  spacing = frame.spacing
  if (volume.placed or volume.positions is not None) and (factor == 1 or spacing is not None):
    position = frame.position
    if factor > 1 and spacing is not None:
      # From the middle of the first pixel to that of its first part; the spacing is that of rows
      # first, the orientation that along a row first.
      step = np.reshape(frame.orientation, (2, 3)) * spacing[::-1, None]
      position = position + (1 / factor - 1) / 2 * step.sum(0)
    dataset.ImagePositionPatient = _decimals(position)
    dataset.ImageOrientationPatient = _decimals(frame.orientation)
  if spacing is not None:
    dataset.PixelSpacing = _decimals(spacing / factor)
  distances = {key: frame.tags.number(key) for key in ("SliceThickness", "SpacingBetweenSlices")}
  distances = {key: value for key, value in distances.items() if value}  # a zero is no distance
  if volume.placed and len(volume.source) > 1:
    distances["SpacingBetweenSlices"] = volume.voxel_size[2]
  distances["SliceLocation"] = frame.tags.number("SliceLocation")
  for keyword, value in distances.items():
    if value is not None:
      setattr(dataset, keyword, _decimals([value])[0])


def _decimals(values: Any) -> list[DSfloat]:
  """Numbers as decimal strings, which have 16 characters at most."""
  return [DSfloat(float(value), auto_format=True) for value in values]
