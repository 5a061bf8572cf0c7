"""The steps: plain functions of values, each leaving one folder."""
