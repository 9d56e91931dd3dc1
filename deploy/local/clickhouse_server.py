"""A whole ClickHouse server out of the chdb-core wheel: clickhouse_server.py DATA LIBRARY.

Reads config.xml in its working directory, opens its HTTP and native ports, and serves until a
signal ends it. The library is loaded by its path on purpose: `import chdb` runs a query of its own
first, after which Kafka tables are refused with 'Shutdown was called'.
"""

import importlib.util
import sys

spec = importlib.util.spec_from_file_location("_chdb", sys.argv[2])
chdb = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chdb)
# The server lives as long as one query does; this one takes three years.
chdb.query(
    "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; "
    "SELECT sleepEachRow(1) FROM numbers(100000000) SETTINGS max_block_size = 1 FORMAT Null",
    "CSV",
    path=sys.argv[1],
)
