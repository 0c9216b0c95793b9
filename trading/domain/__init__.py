"""Pure trading vocabulary: no I/O, no clock, no float, standard library only."""
