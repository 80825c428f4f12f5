"""Rows in, answers of a chat model out. No file of this folder uses Beam."""
