"""DICOM: reading a file or a series as a `grids.Volume`, writing one as a Secondary Capture series.

The rules of reading, in the order in which they apply:

1. Files that hold no image (reports, structure sets, plans, segmentations, DICOMDIR), that are no
   DICOM, broken, or compressed without a decoder being installed are left out, each with its
   reason; the rest goes on. Hidden files and subfolders are not looked at.
2. What is left must be one series, of one size, orientation and pixel spacing. Otherwise nothing is
   read, and the error says what there is: Series Instance UIDs, never patients.
3. Slices are sorted by position: ImagePositionPatient along the normal of ImageOrientationPatient.
   Where a series lacks these, by SliceLocation, else InstanceNumber, else the frame's number in the
   file, else the file's name; the volume then has no geometry. Several images at one position (a
   time series, several echoes) are refused, so are Siemens mosaics (see `mosaic`), and gaps noted.
4. Stored values become `unit`, and PET becomes SUV where the tags allow (see `suv`); MONOCHROME1 is
   inverted (not PET, nuclear medicine and dose, whose values are quantities), padding takes the
   lowest value of its slice, colour becomes 8-bit RGB.
5. The window is the file's first; where slices have different ones, the medians of their ends.

What is printed or raised here names files, tags and UIDs, and no value that describes a patient.
"""

from dmfnet_jax.io.dicom.headers import looks_like_dicom
from dmfnet_jax.io.dicom.read import read_dicom
from dmfnet_jax.io.dicom.write import write_secondary_capture

__all__ = ["looks_like_dicom", "read_dicom", "write_secondary_capture"]
