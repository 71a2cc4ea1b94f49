"""How a report's prompts are kept apart from all that training saw."""

REPORT_STREAM = 1_380_274_260
"""Last word of the seed of a report's prompts; training and evaluation seeds have one word or two, never this third."""
