"""One file of figures per subject."""
