"""Reading and writing: paths, pictures, volumes, colour."""
