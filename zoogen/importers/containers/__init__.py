"""The files of a source by name, wherever they lie: folder, zip, tar, one file, a list of repositories."""
