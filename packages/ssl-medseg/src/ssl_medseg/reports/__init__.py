"""Reports: pictures, curves and the HTML page of a run."""
