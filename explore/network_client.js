// The page's side of worker.js.

let unanswered = 0; // questions, of all clients

export class NetworkClient {
  constructor() {
    const options = { type: "module" };
    this.worker = new Worker(new URL("worker.js", import.meta.url), options);
    this.waiting = new Map();
    this.worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      count(-1);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    };
    this.id = 0;
  }

  /** Calls a function of the worker; a promise of what it returns. */
  ask(call, argument) {
    const id = this.id++;
    this.worker.postMessage({ id, call, argument });
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      count(1);
    });
  }
}

/** On the page, for its tests: nothing that is shown is old where this is 0. */
function count(more) {
  unanswered += more;
  document.body.dataset.waiting = unanswered;
}

/** A function that works on its newest argument alone, whatever comes in meanwhile. */
export function newestOnly(work) {
  let next = null;
  let isBusy = false;
  return async (argument) => {
    next = { argument };
    if (isBusy) return;
    isBusy = true;
    try {
      while (next) {
        const { argument: newest } = next;
        next = null;
        await work(newest);
      }
    } finally {
      isBusy = false;
    }
  };
}
