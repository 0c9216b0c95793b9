"""The risk score: a calibrated probability of one stated event, from closed hourly candles alone.

Importing this package is cheap. Scoring needs numpy at most; only ``training`` needs scikit-learn (extra ``ml``).
"""
