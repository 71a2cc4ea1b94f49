"""Papers reproduced: each of their claims measured, with an interval over seeds, a negative control and a verdict.

The only part of ``analyses`` that trains.
"""
