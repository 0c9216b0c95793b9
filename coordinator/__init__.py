"""The desk's meeting: agents propose and vote, a leader decides, approved decisions walk on to risk and execution."""
