// What the scripts have in common: steps are told on standard output, so that
// the test notices one that was left out.
"use strict";

const assert = require("assert/strict");

// step runs one step and tells of it when it is through.
async function step(name, run) {
  try {
    await run();
  } catch (e) {
    e.message = `${name}: ${e.message}`;
    throw e;
  }
  console.log(name);
}

// refused expects a promise to be rejected, and returns with what.
async function refused(promise) {
  let value;
  try {
    value = await promise;
  } catch (e) {
    return e;
  }
  return assert.fail(`was not refused: ${JSON.stringify(value)}`);
}

// until repeats a call until it says yes, for half a minute at most.
async function until(what, says) {
  const deadline = Date.now() + 30_000;
  while (!(await says())) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// main runs a script and ends the process with its failure.
function main(script) {
  script().catch((e) => {
    console.error(e.stack, e.underlying?.message ?? e.cause?.message ?? "");
    process.exitCode = 1;
  });
}

module.exports = { assert, step, refused, until, main };
