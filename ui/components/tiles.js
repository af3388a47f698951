// Large figures {name, value, unit, title, note}, each with its age and a badge when it is stale.

import { age } from "/static/age_mixin.js";

export default {
  mixins: [age],
  template: `
    <dl class="ac-tiles" data-testid="tiles">
      <div v-for="tile in tiles" :key="tile.name" class="ac-tile" :class="{stale}" :title="tile.title" :data-tile="tile.name">
        <dt>{{ tile.name }}</dt>
        <dd>{{ tile.value }}<small v-if="tile.unit"> {{ tile.unit }}</small></dd>
        <dd class="ac-age"><b v-if="stale">stale</b><b v-else-if="tile.note">{{ tile.note }}</b> {{ age }} s ago</dd>
      </div>
    </dl>`,
  props: { tiles: Array },
};
