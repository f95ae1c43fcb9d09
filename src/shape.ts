/**
 * Shapes of JSON: what a document from outside must look like, and what a command outputs. A shape checks a value,
 * lists its fields for help, and provides its type, so that a document is described once.
 */
import { LazydiskError } from './errors.ts';

export interface Shape<T> {
  /** Returns the first problem of `value`, or undefined. `at` is its place in the document: `a.b.0`, or ''. */
  problem(value: unknown, at: string): string | undefined;
  /** The text after the name of a field of this shape in a list of fields; '' for a plain value. */
  readonly fields: string;
  /** For the compiler only. */
  readonly type?: T;
}

export type TypeOf<S> = S extends Shape<infer T> ? T : never;

/**
 * Returns `value` if it has that shape. Throws an error of `code` with `name`, the name of the document, and the place
 * and problem.
 */
export function checked<T>(
  shape: Shape<T>,
  value: unknown,
  { code, name }: { readonly code: 'USAGE' | 'CORRUPT'; readonly name: string },
): T {
  const problem = shape.problem(value, '');
  if (problem !== undefined) throw new LazydiskError(code, `${name}: ${problem}`);
  return value as T;
}

const want = (what: string, at: string) => `${at === '' ? '' : `${at}: `}want ${what}`;

/** A plain value that `test` accepts. */
export function plain<T>(what: string, test: (value: unknown) => boolean): Shape<T> {
  return { fields: '', problem: (value, at) => (test(value) ? undefined : want(what, at)) };
}

/** `T`: the possible texts, for the compiler only; they are not checked. */
export function text<T extends string = string>(
  lengthMin = 0,
  lengthMax = Number.POSITIVE_INFINITY,
): Shape<T> {
  const isText = (value: unknown) =>
    typeof value === 'string' && value.length >= lengthMin && value.length <= lengthMax;
  return plain(
    lengthMax < Number.POSITIVE_INFINITY ? `text of ${lengthMin} to ${lengthMax}` : 'text',
    isText,
  );
}

export const number = plain<number>('a number', Number.isFinite);
export const boolean = plain<boolean>('true or false', (value) => typeof value === 'boolean');
/** Bytes or items. */
export const count = plain<number>(
  'a whole number of at least 0',
  (value) => Number.isSafeInteger(value) && (value as number) >= 0,
);

export function matching(pattern: RegExp): Shape<string> {
  return plain(`text like ${pattern}`, (value) => typeof value === 'string' && pattern.test(value));
}

export function oneOf<const T extends string | number>(...values: readonly T[]): Shape<T> {
  return plain(values.map((value) => JSON.stringify(value)).join(' or '), (value) =>
    values.includes(value as T),
  );
}

export function nullable<T>(shape: Shape<T>): Shape<T | null> {
  return {
    fields: shape.fields && `${shape.fields} or null`,
    problem: (value, at) => (value === null ? undefined : shape.problem(value, at)),
  };
}

/** A field that may be absent. */
export function optional<T>(shape: Shape<T>): Shape<T | undefined> {
  return {
    fields: shape.fields,
    problem: (value, at) => (value === undefined ? undefined : shape.problem(value, at)),
  };
}

/** Absent or null, as Go writes empty fields. */
export function nullish<T>(shape: Shape<T>): Shape<T | null | undefined> {
  return optional(nullable(shape));
}

export function list<T>(shape: Shape<T>, { min = 0, max = Number.POSITIVE_INFINITY } = {}): Shape<T[]> {
  return {
    fields: shape.fields === '' ? ' []' : ` [${shape.fields.replace(/^ \{ (.*) \}$/, '$1')}]`,
    problem(value, at) {
      if (!Array.isArray(value)) return want('a list', at);
      if (value.length < min || value.length > max) return want(`a list of ${min} to ${max}`, at);
      return firstProblem(value.entries(), at, () => shape);
    },
  };
}

/** An object whose field names are data, each matching `key`. */
export function record<T>(shape: Shape<T>, key = /^/): Shape<Record<string, T>> {
  return {
    fields: ' { … }',
    problem(value, at) {
      if (!isObject(value)) return want('an object', at);
      const strange = Object.keys(value).find((name) => !key.test(name));
      if (strange !== undefined) return want(`names like ${key}`, at);
      return firstProblem(Object.entries(value), at, () => shape);
    },
  };
}

/** A value of one of these shapes. */
export function either<S extends readonly Shape<unknown>[]>(...shapes: S): Shape<TypeOf<S[number]>> {
  return {
    fields: shapes.map(({ fields }) => fields).join(' or'),
    problem(value, at) {
      const problems = shapes.map((shape) => shape.problem(value, at));
      return problems.includes(undefined) ? undefined : problems.join(', or ');
    },
  };
}

/** Fields of one shape, by their names, for an object. */
export function each<T, const Name extends string>(
  shape: Shape<T>,
  ...names: readonly Name[]
): Record<Name, Shape<T>> {
  return Object.fromEntries(names.map((name) => [name, shape])) as Record<Name, Shape<T>>;
}

type Fields<T> = { readonly [K in keyof T]-?: Shape<T[K]> };

/** An object with these fields and no others. */
export function object<T>(fields: Fields<T>): Shape<T> {
  const known = openObject(fields);
  return {
    ...known,
    problem(value, at) {
      const strange = isObject(value) && Object.keys(value).find((name) => !Object.hasOwn(fields, name));
      if (typeof strange === 'string') return want(`no field ${JSON.stringify(strange.slice(0, 100))}`, at);
      return known.problem(value, at);
    },
  };
}

/** An object with these fields; others are ignored. */
export function openObject<T>(fields: Fields<T>): Shape<T> {
  const entries = Object.entries(fields) as [string, Shape<unknown>][];
  return {
    fields: ` { ${entries.map(([name, shape]) => name + shape.fields).join(', ')} }`,
    problem(value, at) {
      if (!isObject(value)) return want('an object', at);
      const own = entries.map(
        ([name]) => [name, Object.hasOwn(value, name) ? value[name] : undefined] as const,
      );
      return firstProblem(own, at, (name) => fields[name as keyof T]);
    },
  };
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function firstProblem(
  entries: Iterable<readonly [string | number, unknown]>,
  at: string,
  shapeOf: (name: string | number) => Shape<unknown>,
): string | undefined {
  for (const [name, value] of entries) {
    const problem = shapeOf(name).problem(value, at === '' ? `${name}` : `${at}.${name}`);
    if (problem !== undefined) return problem;
  }
  return undefined;
}
