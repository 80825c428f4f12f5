"""FAISS: train, build, measure, tune, and search one kind of assets."""
