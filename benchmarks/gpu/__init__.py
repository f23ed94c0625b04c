"""What only a GPU can tell, measured on one by one script: `scripts/gpu-check`.

| module      |                                                                                    |
|-------------|------------------------------------------------------------------------------------|
| lab.py      | what a part has to work with, and the parts there are                              |
| runner.py   | runs a part in a process of its own, for a bounded time                            |
| work.py     | that process                                                                       |
| page.py     | what was found, as JSON and as a page                                              |
| models.py   | the models that are measured, and requests for them                                |
| sessions.py | ONNX Runtime with the settings that are compared                                   |
| binding.py  | the ways in which a batch gets to an engine and back                               |
| timing.py   | how long calls take                                                                |
| parts/      | one module for each part                                                           |
| wheels.py   | gathers what a machine without a network needs                                     |
| cargo.py    | cuts that into pieces and joins them again; needs nothing but Python's own library |

Without a GPU every part runs on the CPU in small sizes: a dry run, which shows that the script works and nothing else.
"""
