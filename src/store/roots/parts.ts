/** The parts of a store that whole-store operations share: its objects, its policy, its areas and names. */

import type { ObjectStore } from '../objects/object-store.ts';
import type { Clock } from './clock.ts';
import type { StorePolicy } from './policy.ts';
import type { References } from './references.ts';
import type { Views } from './view.ts';

export interface StoreParts {
  readonly objects: ObjectStore;
  readonly policy: StorePolicy;
  readonly clock: Clock;
  readonly views: Views;
  readonly references: References;
}
