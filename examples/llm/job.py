"""The job to copy for a language model: redline optimize examples/llm/job.py"""

from smollm2 import model, text

from redline.bench.tokens import TokenSLA
from redline.optimize.llm_job import LanguageJob

job = LanguageJob(
    name="smollm2",
    model=model,
    text=text,
    max_rise=0.01,
    sla=TokenSLA(ttft="2s", itl="80ms", rate=2.5, prompt_tokens=64, output_tokens=24),
)
