"""Labelled images from folders, archives and parquet files, and the check of their label order."""

from mf_deploy.data.images import Batch, LabelledImages, digest_of, open_images

__all__ = ["Batch", "LabelledImages", "digest_of", "open_images"]
