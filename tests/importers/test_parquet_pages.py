"""Sizes of pages, as the headers in the file tell them: those that Arrow wrote."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoogen.importers.records.parquet_pages import page_sizes

TABLE = pa.table({"x": np.arange(50_000), "t": [f"t{i % 700}" for i in range(50_000)], "l": [[1.5, None]] * 50_000})


def chunks(path):
    told = pq.ParquetFile(path).metadata
    for group in map(told.row_group, range(told.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            yield column, start, column.total_compressed_size


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "gzip"])
def test_pages_and_their_headers_are_all_of_a_column(tmp_path, version, compression):
    path = tmp_path / "t.parquet"
    options = {"data_page_version": version, "compression": compression, "write_page_checksum": True}
    pq.write_table(TABLE, path, data_page_size=5_000, row_group_size=20_000, **options)
    data = path.read_bytes()
    for column, start, length in chunks(path):
        sizes = list(page_sizes(data, start, length))
        assert len(sizes) >= 2
        # Headers are counted in what the end of the file tells: some dozen bytes for each page.
        assert 0 < column.total_uncompressed_size - sum(sizes) < 200 * len(sizes)


def test_damage_anywhere_ends_in_an_error_or_in_sizes(tmp_path):
    pq.write_table(TABLE.slice(0, 100), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _, start, length in chunks(tmp_path / "t.parquet"):
        for _ in range(300):
            damaged = bytearray(data)
            for place in rng.integers(start, start + 40, 3):
                damaged[place] = rng.integers(0, 256)
            try:
                assert all(size >= 0 for size in page_sizes(bytes(damaged), start, length))
            except ValueError:
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(("start", "length"), [(-1, 10), (0, 10_000_000), (10, -5)])
def test_a_column_outside_of_the_file_is_refused(tmp_path, start, length):
    with pytest.raises(ValueError, match="beyond the end"):
        list(page_sizes(b"\0" * 1000, start, length))
