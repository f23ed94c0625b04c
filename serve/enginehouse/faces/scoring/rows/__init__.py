"""Rows of Arrow -> what a model is asked, exactly; and which rows are bad, and why."""
