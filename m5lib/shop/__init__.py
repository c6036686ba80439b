"""The synthetic five-modality shop, with known truth."""
