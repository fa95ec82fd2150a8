"""Labelled images from folders, manifests, tar shards and IDX files, as one stream of batches."""

from vitdeploy.data.dataset import Batch, Batches, Counts, Dataset, LoadConfig, open_dataset

__all__ = ["Batch", "Batches", "Counts", "Dataset", "LoadConfig", "open_dataset"]
