import sys
from pathlib import Path


# As `python app/app.py` does.
sys.path.insert(0, str(Path(__file__).parents[2] / "app"))
