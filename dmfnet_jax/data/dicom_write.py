"""Writing fused slices as a DICOM Secondary Capture series that lies where its source lies.

One file a slice (Secondary Capture Image Storage, PS3.3 A.8.1), 8 bits, grey or RGB, uncompressed.
Patient, study and frame of reference are copied from the source series, so that a viewer files the
result beside it and can overlay both; series and images get new UIDs.
"""

import contextlib
import copy
import datetime
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from pydicom.valuerep import DSfloat

import dmfnet_jax
from dmfnet_jax.data import dicom_headers as headers
from dmfnet_jax.data import images
from dmfnet_jax.data.dicom_volume import DicomVolume
from dmfnet_jax.errors import UserError

_MAKER = "dmfnet_jax"

# The patient and study modules (C.7.1.1, C.7.2.1, C.7.2.2), with what says how names are encoded
# and whether they were removed. The study's times stay: a study is identified by them.
_COPIED = (
  "SpecificCharacterSet",
  "PatientName",
  "PatientID",
  "IssuerOfPatientID",
  "TypeOfPatientID",
  "PatientBirthDate",
  "PatientSex",
  "OtherPatientIDsSequence",
  "PatientAge",
  "PatientSize",
  "PatientWeight",
  "PatientIdentityRemoved",
  "DeidentificationMethod",
  "DeidentificationMethodCodeSequence",
  "LongitudinalTemporalInformationModified",
  "StudyInstanceUID",
  "StudyDate",
  "StudyTime",
  "StudyID",
  "StudyDescription",
  "AccessionNumber",
  "ReferringPhysicianName",
  "FrameOfReferenceUID",
  "PositionReferenceIndicator",
  "BodyPartExamined",
  "Laterality",
  "PatientPosition",
  "PixelSpacingCalibrationType",
  "LossyImageCompression",
  "LossyImageCompressionRatio",
  "LossyImageCompressionMethod",
)
# Type 2, or 2C by rules that a program cannot decide: to be there, if empty.
_AT_LEAST_EMPTY = (
  "PatientName",
  "PatientID",
  "PatientBirthDate",
  "PatientSex",
  "StudyDate",
  "StudyTime",
  "StudyID",
  "AccessionNumber",
  "ReferringPhysicianName",
  "Laterality",
  "PatientOrientation",
)


def write_secondary_capture(
  folder: images.PathLike,
  pictures: np.ndarray,
  source: DicomVolume,
  *,
  description: str = "DM-FNet fusion",
  derivation: str = "Fused from two registered series by dmfnet_jax",
) -> list[Any]:
  """Writes pictures as a new Secondary Capture series in the study of their source.

  All files are complete before the first of them takes its place, so that a folder never holds a
  part of a slice.

  Args:
    folder: where to; made where it is missing. Files `slice_0001.dcm`, ... in the order of
      `source`; older ones of these names are replaced.
    pictures: uint8 [slices, rows, columns] (MONOCHROME2) or [slices, rows, columns, 3] (RGB), on
      the grid of `source`.
    source: the series whose grid, patient and study it is.
    description: of the series, as viewers list it; ASCII, at most 64 characters are kept. It and
      `derivation` are to hold no patient data and no file names, which may contain some.
    derivation: how the pictures came about; ASCII, at most 1024 characters are kept.

  Returns:
    The paths, in the order of the slices.

  Raises:
    UserError: the folder cannot be written, or holds other DICOM files, which would mix with these.
    ValueError: the pictures are not such an array.
  """
  pictures = np.asarray(pictures)
  grid = source.data.shape[:3]
  if pictures.dtype != np.uint8 or pictures.shape not in (grid, (*grid, 3)):
    raise ValueError(
      f"uint8 {grid} or {(*grid, 3)} expected, got {pictures.dtype} {pictures.shape}"
    )
  place = images.make_folder(folder)
  paths = [place / f"slice_{i + 1:04d}.dcm" for i in range(len(pictures))]
  _check_folder(place, {path.name for path in paths})

  series_uid, now = generate_uid(), datetime.datetime.now()
  temporary = [path.with_name(f".{secrets.token_hex(8)}.tmp") for path in paths]
  try:
    with headers.quiet(), _any_value():
      for i, path in enumerate(temporary):
        dataset = _image(pictures[i], source, i, series_uid, now)
        dataset.SeriesDescription = _ascii(description, 64)
        dataset.DerivationDescription = _ascii(derivation, 1024)
        with path.open("xb") as file:
          dataset.save_as(file, enforce_file_format=True)
    for written, path in zip(temporary, paths, strict=True):
      written.replace(path)
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise UserError(f"{folder}: cannot write: {reason}") from error
  finally:
    for path in temporary:
      with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
  return paths


def _check_folder(folder: Any, ours: set[str]) -> None:
  others = [
    file.name
    for file in images.list_files(folder)
    if headers.looks_like_dicom(file) and not (file.name in ours and _is_our_result(file))
  ]
  if others:
    raise UserError(
      f"{folder}: holds other DICOM files ({others[0]}{' ...' if len(others) > 1 else ''}),"
      " with which the new series would be mixed: name an empty folder"
    )


def _is_our_result(file: Any) -> bool:
  """Whether a file was written here: a source of the same name must not be replaced."""
  with headers.quiet():
    try:
      header = headers.read_header(file)
    except headers.BadFileError:
      return False
    return headers.text(header, "SecondaryCaptureDeviceManufacturer") == _MAKER


@contextlib.contextmanager
def _any_value() -> Iterator[None]:
  """Lets copied values be written as they are; a source may break its standard's length limits."""
  settings = pydicom.config.settings
  mode = settings.writing_validation_mode
  settings.writing_validation_mode = pydicom.config.IGNORE
  try:
    yield
  finally:
    settings.writing_validation_mode = mode


def _image(
  picture: np.ndarray, source: DicomVolume, i: int, series_uid: str, now: datetime.datetime
) -> pydicom.Dataset:
  """One slice: uint8 [rows, columns] or [rows, columns, 3]."""
  header = source.datasets[i]
  dataset = pydicom.Dataset()
  for keyword in _COPIED:
    # pydicom parses on access; what it cannot parse is not copied.
    with contextlib.suppress(Exception):
      dataset[keyword] = copy.deepcopy(header[keyword])
  for keyword in _AT_LEAST_EMPTY:
    if keyword not in dataset:
      setattr(dataset, keyword, "")
  if not headers.uid(dataset, "StudyInstanceUID"):
    raise UserError(f"{source.files[i]}: lacks StudyInstanceUID: there is no study to write into")

  date, time = f"{now:%Y%m%d}", f"{now:%H%M%S.%f}"
  dataset.SOPClassUID = SecondaryCaptureImageStorage
  dataset.SOPInstanceUID = generate_uid()
  dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = date
  dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = time
  dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
  dataset.SeriesInstanceUID = series_uid
  # Behind the scanner's own series in a list, and beside its source.
  dataset.SeriesNumber = int(headers.number(header, "SeriesNumber") or 0) % 1_000_000 + 1000
  dataset.InstanceNumber = i + 1
  dataset.Modality = "OT"
  dataset.ConversionType = "WSD"  # workstation
  dataset.Manufacturer = dataset.SecondaryCaptureDeviceManufacturer = _MAKER
  dataset.SecondaryCaptureDeviceSoftwareVersions = dmfnet_jax.__version__
  dataset.ImageType = ["DERIVED", "SECONDARY"]
  burned_in = headers.text(header, "BurnedInAnnotation").upper() == "YES"
  dataset.BurnedInAnnotation = "YES" if burned_in else "NO"
  if headers.uid(header, "SOPInstanceUID"):
    dataset.SourceImageSequence = [_reference(header, source.frames[i])]
  _set_geometry(dataset, source, i)

  dataset.Rows, dataset.Columns = picture.shape[:2]
  dataset.SamplesPerPixel = 1 if picture.ndim == 2 else 3
  dataset.PhotometricInterpretation = "MONOCHROME2" if picture.ndim == 2 else "RGB"
  if picture.ndim == 3:
    dataset.PlanarConfiguration = 0
  else:
    # 0 is black and 255 white: some viewers would stretch the contrast otherwise.
    dataset.WindowCenter, dataset.WindowWidth = 128, 256
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  pixels = np.ascontiguousarray(picture).tobytes()
  dataset.add_new("PixelData", "OB", pixels + b"\0" * (len(pixels) % 2))  # always of even length

  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  return dataset


def _reference(header: pydicom.Dataset, frame: int | None) -> pydicom.Dataset:
  """Names the image from which a slice was made."""
  reference = pydicom.Dataset()
  reference.ReferencedSOPClassUID = headers.uid(header, "SOPClassUID")
  reference.ReferencedSOPInstanceUID = headers.uid(header, "SOPInstanceUID")
  if frame is not None:
    reference.ReferencedFrameNumber = frame + 1
  purpose = pydicom.Dataset()
  purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
  purpose.CodeMeaning = "Source image for image processing operation"
  reference.PurposeOfReferenceCodeSequence = [purpose]
  return reference


def _set_geometry(dataset: pydicom.Dataset, source: DicomVolume, i: int) -> None:
  """Writes what is known of position, orientation and distances."""
  if source.positions is not None and source.orientation is not None:
    dataset.ImagePositionPatient = _decimals(source.positions[i])
    dataset.ImageOrientationPatient = _decimals(source.orientation)
  if source.pixel_spacing is not None:
    dataset.PixelSpacing = _decimals(source.pixel_spacing)
  if source.slice_thickness is not None:
    dataset.SliceThickness = _decimals([source.slice_thickness])[0]
  step = source.slice_step
  if len(source.datasets) > 1 and step is not None:
    dataset.SpacingBetweenSlices = _decimals([np.linalg.norm(step)])[0]
  elif source.slice_spacing is not None:
    dataset.SpacingBetweenSlices = _decimals([source.slice_spacing])[0]
  location = headers.number(source.datasets[i], "SliceLocation")
  if location is not None:
    dataset.SliceLocation = _decimals([location])[0]


def _decimals(values: Any) -> list[DSfloat]:
  """Numbers as decimal strings, which have 16 characters at most."""
  return [DSfloat(float(value), auto_format=True) for value in values]


def _ascii(words: str, length: int) -> str:
  """One line that every character set can hold; a backslash would separate values."""
  line = " ".join(words.split()).replace("\\", "/")
  return line.encode("ascii", "replace").decode()[:length].strip()
