"""The protocol of a catalog: names on disk, manifest, `LATEST.json`, history, lease and reader holds."""
