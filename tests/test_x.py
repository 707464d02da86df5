from pathlib import Path
from tests.support import tree, content
def test_x(finished: Path, pipeline: Path) -> None:
    print(len(content(finished)), list(content(finished))[:60])
    import pyarrow.parquet as pq
    print(pq.read_table(finished/'iter-00001/reward_scoring/shard-0000/part.parquet')['reward'].to_pylist())
    print(pq.read_table(finished/'iter-00002/surrogate_update/metrics.parquet').to_pylist())
    assert 0
