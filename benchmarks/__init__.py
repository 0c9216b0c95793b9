"""Measures each budgeted path beside the limit that the machine sets in the same run.

Absolute figures drift with the machine; the ratio to the limit loop is what counts. Nothing here gates CI.
"""
