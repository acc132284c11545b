"""List the files of data sets in the supported layouts."""
