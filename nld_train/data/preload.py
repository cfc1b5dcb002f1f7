"""Imported once by the fork server of the data workers, so that none of them waits for Megatron-Core's import."""

from nld_train.data.packed import indexed_dataset_module

indexed_dataset_module()
