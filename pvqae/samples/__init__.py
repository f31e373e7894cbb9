"""What a stage reads of a dataset: its classes, checked rows, images and views."""
