"""What a representation is worth: spread, correlation, spectrum, linear probe."""

from ._capture import captured as captured
from ._correlation import correlation_matrix as correlation_matrix
from ._correlation import mean_correlation as mean_correlation
from ._features import head_features as head_features
from ._probe import linear_probe as linear_probe
from ._sign_test import sign_test as sign_test
from ._spectrum import covariance_spectrum as covariance_spectrum
from ._spectrum import effective_rank as effective_rank
from ._spread import share_below as share_below
