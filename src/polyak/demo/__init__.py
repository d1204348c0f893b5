"""The main job on real data, end to end. Importing this package imports Keras, TensorFlow and scikit-learn.

Example::

    report = polyak.demo.run("polyak-demo", seed=0)
"""

from polyak.demo.held import Arrival, Held
from polyak.demo.job import Report, Row, run
from polyak.demo.routes import ROUTES, Context, Route

__all__ = ["ROUTES", "Arrival", "Context", "Held", "Report", "Route", "Row", "run"]
