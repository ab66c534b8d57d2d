"""A result's analysis as text and pictures: HTML, Markdown and CSV. Pure: no clock, no host, no files written."""
