"""DICOM files made by the tests: small, of any kind, with a patient whom no message may name."""

import numpy as np
import pydicom
from pydicom import uid

PATIENT = {
  "PatientName": "Zyxwolski^Quennetta",
  "PatientID": "PID-7431985",
  "PatientBirthDate": "19530817",
  "PatientAddress": "17 Qwertzstrasse",
  "OtherPatientIDs": "XID-5550199",
  "PatientWeight": "61.25",
  "ReferringPhysicianName": "Hrabalova^Ottokar",
  "AccessionNumber": "ACC-993177",
  "InstitutionName": "Spital Uvwxy",
}
SECRETS = [
  part for value in PATIENT.values() for part in (value, *value.split("^"), value.split("-")[-1])
]
"""What must not appear in anything that is printed."""

STUDY, FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.1001", "1.2.826.0.1.3680043.8.498.1002"
SERIES = "1.2.826.0.1.3680043.8.498.2001"
ROWS, COLUMNS = 5, 7  # not square: a swapped axis shows

_CLASSES = {
  "CT": uid.CTImageStorage,
  "PT": uid.PositronEmissionTomographyImageStorage,
  "MR": uid.MRImageStorage,
  "NM": uid.NuclearMedicineImageStorage,
  "CR": uid.ComputedRadiographyImageStorage,
  "OT": uid.SecondaryCaptureImageStorage,
}


def values(seed=0, rows=ROWS, columns=COLUMNS, dtype=np.int16, low=0, high=1000):
  """Random stored values."""
  return np.random.default_rng(seed).integers(low, high, (rows, columns)).astype(dtype)


def dataset(stored, modality="CT", syntax=uid.ExplicitVRLittleEndian, **tags):
  """An image: stored values [rows, columns], [rows, columns, 3] or with frames in front.

  Tags replace or add to those of a plain axial slice; None removes one.
  """
  ds = pydicom.Dataset()
  ds.file_meta = pydicom.dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = syntax
  colour = stored.ndim >= 3 and stored.shape[-1] == 3
  frames = stored.shape[0] if stored.ndim == 3 + colour else None
  rows, columns = stored.shape[-3:-1] if colour else stored.shape[-2:]
  bits = stored.dtype.itemsize * 8
  base = {
    **PATIENT,
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientSex": "F",
    "StudyInstanceUID": STUDY,
    "SeriesInstanceUID": SERIES,
    "FrameOfReferenceUID": FRAME_OF_REFERENCE,
    "SOPClassUID": _CLASSES.get(modality, uid.CTImageStorage),
    "SOPInstanceUID": uid.generate_uid(),
    "StudyDate": "20240229",
    "StudyTime": "101500",
    "StudyID": "4",
    "SeriesNumber": 3,
    "InstanceNumber": 1,
    "Modality": modality,
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "ImagePositionPatient": [-30.5, -20.25, 12.0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [2.5, 1.25],
    "SliceThickness": 4,
    "Rows": rows,
    "Columns": columns,
    "NumberOfFrames": frames,
    "SamplesPerPixel": 3 if colour else 1,
    "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
    "PlanarConfiguration": 0 if colour else None,
    "BitsAllocated": bits,
    "BitsStored": bits,
    "HighBit": bits - 1,
    "PixelRepresentation": int(np.issubdtype(stored.dtype, np.signedinteger)),
    "RescaleSlope": None if colour or modality == "MR" else 1,
    "RescaleIntercept": None if colour or modality == "MR" else -1024,
  }
  ds.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
  ds["PixelData"].VR = "OW" if bits > 8 else "OB"
  set_tags(ds, **base)
  return set_tags(ds, **tags)


def set_tags(ds, **tags):
  """Sets tags; None removes one."""
  for keyword, value in tags.items():
    if value is not None:
      setattr(ds, keyword, value)
    elif keyword in ds:
      delattr(ds, keyword)
  return ds


def save(path, ds):
  """Writes a file without caring whether its values are allowed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with pydicom.config.disable_value_validation():
    ds.save_as(path, enforce_file_format=True)
  return path


def oblique():
  """Two perpendicular unit vectors that are no axes: float64 [6]."""
  row = np.array([2.0, -1.0, 0.5])
  row /= np.linalg.norm(row)
  column = np.cross([0.3, 0.2, 1.0], row)
  return np.concatenate([row, column / np.linalg.norm(column)])


def write_series(folder, count=5, step=3.0, orientation=(1, 0, 0, 0, 1, 0), modality="CT", **tags):
  """Writes a series whose file names and InstanceNumbers run against the slices' positions.

  Slice k from the bottom along the normal holds the stored values `values(k)`. A callable in `tags`
  is called with k.
  """
  orientation = np.asarray(orientation, float)
  normal = np.cross(orientation[:3], orientation[3:])
  first = np.array([-30.5, -20.25, 12.0])
  shuffled = np.random.default_rng(5).permutation(count)
  stored = tags.pop("stored", values)
  for k in range(count):
    own = {key: value(k) if callable(value) else value for key, value in tags.items()}
    position = {"ImagePositionPatient": list(first + k * step * normal)}
    place = position | {"ImageOrientationPatient": list(orientation), "InstanceNumber": count - k}
    with pydicom.config.disable_value_validation():
      ds = dataset(stored(k), modality, **(place | own))
    save(folder / f"IM{shuffled[k]:04d}", ds)
  return folder


def pet_tags(**changes):
  """What a PET header needs for SUV: 400 MBq injected 2 h, two half lives, before the scan."""
  dose = pydicom.Dataset()
  dose.RadionuclideTotalDose = 400e6
  dose.RadionuclideHalfLife = 3600
  dose.RadiopharmaceuticalStartTime = "080000.00"
  for keyword in ("RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime"):
    if keyword in changes:
      set_tags(dose, **{keyword: changes.pop(keyword)})
  if "RadiopharmaceuticalStartDateTime" in changes:
    dose.RadiopharmaceuticalStartDateTime = changes.pop("RadiopharmaceuticalStartDateTime")
  return {
    "modality": "PT",
    "Units": "BQML",
    "CorrectedImage": ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"],
    "DecayCorrection": "START",
    "SeriesDate": "20240229",
    "SeriesTime": "100000",
    "AcquisitionDate": "20240229",
    "AcquisitionTime": "100000.5",
    "RescaleIntercept": 0,
    "RadiopharmaceuticalInformationSequence": [dose],
  } | changes


def enhanced(stored, order, orientation=(1, 0, 0, 0, 1, 0), step=3.0, **tags):
  """An enhanced CT of frames [n, rows, columns]; frame i lies at place `order[i]` of the stack."""
  orientation = np.asarray(orientation, float)
  normal = np.cross(orientation[:3], orientation[3:])
  away = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
  away |= {"RescaleSlope": None, "RescaleIntercept": None, "SliceThickness": None}
  ds = dataset(stored, **(away | {"SOPClassUID": uid.EnhancedCTImageStorage}))

  def group(**content):
    inner = pydicom.Dataset()
    return [set_tags(inner, **content)]

  shared = pydicom.Dataset()
  shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(orientation))
  shared.PixelMeasuresSequence = group(PixelSpacing=[2.5, 1.25], SliceThickness=4)
  ds.SharedFunctionalGroupsSequence = [shared]
  frames = []
  for i, place in enumerate(order):
    frame = pydicom.Dataset()
    position = np.array([-30.5, -20.25, 12.0]) + place * step * normal
    frame.PlanePositionSequence = group(ImagePositionPatient=list(position.round(8)))
    transform = {"RescaleSlope": i + 1, "RescaleIntercept": -10 * i, "RescaleType": "HU"}
    frame.PixelValueTransformationSequence = group(**transform)
    frame.FrameVOILUTSequence = group(WindowCenter=40, WindowWidth=400)
    frames.append(frame)
  ds.PerFrameFunctionalGroupsSequence = frames
  return set_tags(ds, **tags)


def world(volume, indices):
  """Maps voxels (column, row, slice) of a series to LPS mm, by each slice's own position."""
  indices, first = np.asarray(indices), volume.source[0]
  positions = np.array([frame.position for frame in volume.source], float)
  return (
    positions[indices[..., 2].astype(int)]
    + indices[..., 1:2] * first.orientation[3:] * first.spacing[0]
    + indices[..., 0:1] * first.orientation[:3] * first.spacing[1]
  )


def slices(volume):
  """A series' values as its files store them: [slices, rows, columns, ...]."""
  return volume.data.swapaxes(0, 2)
