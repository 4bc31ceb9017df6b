"""VCReg in the training loops of Lightning, transformers and Accelerate.

`lightning.VCRegCallback`, `transformers.VCRegCallback` and `transformers.restore`, and
`accelerate.follow`: each module imports its library when something of it is used.
"""

from . import accelerate as accelerate
from . import lightning as lightning
from . import transformers as transformers
