/** A value that the page shows: whoever shows it is told when it changes. */

import { useEffect, useState } from "./vendor/preact.js";

export function store(value) {
  const heard = new Set();
  return {
    get: () => value,
    set(next) {
      value = typeof next === "function" ? next(value) : next;
      for (const tell of [...heard]) tell(value);
    },
    listen(tell) {
      heard.add(tell);
      return () => heard.delete(tell);
    },
  };
}

/** The value of a store, in a component that is drawn again when it changes. */
export function useStore(of) {
  const [value, see] = useState(of.get());
  useEffect(() => {
    see(of.get());
    return of.listen((next) => see(next));
  }, [of]);
  return value;
}
