"""The pure heart: plain values in, plain values out. Imports numpy, torch and itself; no I/O, clock, SQL or own randomness."""
