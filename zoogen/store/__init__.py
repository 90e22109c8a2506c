"""Checkpoints to sealed HDF5 shards with Parquet tables and back; the only room that imports h5py and pyarrow.

``work`` keeps unfinished cohorts, ``shard`` seals and reads shards, ``zoo`` is the folder around them, ``derive`` makes
the derived tables, ``verify`` proves a zoo from its files alone. The format is described in ``docs/format.md``.
"""

FORMAT_VERSION = 1
