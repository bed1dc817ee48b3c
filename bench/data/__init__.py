"""The images: one file a dataset, and the checked `Dataset` of `bench.data.sample`."""
