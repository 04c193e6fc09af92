"""What becomes of a mask: files for other programs, figures of its organs, pages to look at."""
