"""The checker of types and shapes that the import hook puts around every function: an int passes
for a float, as in PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
