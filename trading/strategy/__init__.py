"""Pure trading judgement: from a market snapshot to a proposal or a stance. No I/O, no clock, no claim of profit."""
